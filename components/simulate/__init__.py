"""Fleets of simulated engines behind the router's own code, in a virtual clock: what would this traffic see?"""
