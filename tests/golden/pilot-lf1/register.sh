#!/bin/sh
# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md
dgis se add lf1-node --site lf1 --door gsiftp://storage.node.lf1.example:2811/areas/main --door sftp://storage.node.lf1.example:443/areas/main --door https://storage.node.lf1.example:443/areas/main "$@"
