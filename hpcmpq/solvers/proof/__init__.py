"""Lower bounds: relaxations, enumeration, branch and bound."""
