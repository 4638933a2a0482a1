"""Pretraining tasks without end over BFCL's own API classes: own worlds, own words, never the benchmark's scenarios."""
