from slipstream.errors import Problem
def fits(plan, available): return []
