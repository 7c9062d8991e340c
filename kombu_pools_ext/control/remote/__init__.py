"""Commands across machines, by the broker of BROADCAST: imported only where that is set."""
