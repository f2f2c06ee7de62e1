"""Which op gets which method: candidates, what each costs and loses, and the frontier that is chosen from."""
