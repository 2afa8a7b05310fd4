"""The reasoner β: what it is asked (requests), who answers (reasoners), where answers stay (store), and the Ray Data stage over all rows."""
