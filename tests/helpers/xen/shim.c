/* Preloaded into `xl create -n`, which asks the hypervisor three things before it parses. What is answered only bounds
   the CPU lists of cpus= and nodes=, which no rendered configuration has. */
int libxl_get_physinfo(void *ctx, void *info) { (void)ctx; (void)info; return 0; }
int libxl_get_max_cpus(void *ctx) { (void)ctx; return 64; }
int libxl_get_max_nodes(void *ctx) { (void)ctx; return 1; }
