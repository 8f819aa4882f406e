#!/bin/sh
# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md
dgis se add brno-store --site brno --door gsiftp://storage.store.brno.example:2811/areas/main --door sftp://storage.store.brno.example:443/areas/main --door https://storage.store.brno.example:443/areas/main "$@"
