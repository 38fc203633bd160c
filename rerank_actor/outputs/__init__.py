"""Outputs: scored columns, a plan and reports of units in; a folder that says what is committed and how it went, out.

Which object is where (`folder`), what a part is and whether it is still that (`part`, `verify`), what a run did (`manifest`,
`status`, `price`), what people and other programs are given (`report`, `html`, `histograms`, `export`), and a scored output as
input of whatever comes next (`scored`, `scored_columns`, `row_groups`). Knows nothing of engines (but how a logit becomes a
score) or of Ray.
"""
