"""`make demo`: raw ratings -> pairs -> SFT -> DPO -> evaluation, on invented data, in a few minutes on two cores."""
