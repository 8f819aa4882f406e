#!/bin/sh
# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md
dgis se add uvn-node --site uvn --door gsiftp://storage.node.uvn.example:2811/areas/main --door sftp://storage.node.uvn.example:443/areas/main --door https://storage.node.uvn.example:443/areas/main "$@"
