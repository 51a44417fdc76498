"""How well a way of drawing several subjects does, measured so that others can trust and repeat it.

Measures are pure functions of arrays (`alignment`, `matching`, `measures`, `boxes`); `statistics`, `power` and
`questions` say what may be concluded from them.
"""
