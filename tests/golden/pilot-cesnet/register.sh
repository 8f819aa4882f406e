#!/bin/sh
# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md
dgis se add cesnet-node --site cesnet --door gsiftp://storage.node.cesnet.example:2811/areas/main --door sftp://storage.node.cesnet.example:443/areas/main --door https://storage.node.cesnet.example:443/areas/main "$@"
