#!/bin/sh
# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md
dgis se add motol-store1 --site motol --door gsiftp://storage.store1.motol.example:2811/areas/main --door sftp://storage.store1.motol.example:443/areas/main --door https://storage.store1.motol.example:443/areas/main "$@"
dgis se add motol-store2 --site motol --door gsiftp://storage.store2.motol.example:2812/areas/main --door sftp://storage.store2.motol.example:2222/areas/main --door https://storage.store2.motol.example:443/areas/main "$@"
