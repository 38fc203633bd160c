"""The report of a scoring job: what ran, what it cost, what came out, from the output folder alone.

`facts` gathers numbers from plan, manifest and unit records, `rows` reads a bounded number of parts for examples, and
`page` makes the HTML of both.
"""
