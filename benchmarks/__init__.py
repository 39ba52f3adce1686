"""Measurements: every figure in the README comes from here. Nothing is asserted, nothing of it is part of the product."""
