"""Scoring: a `ScoreJob` in; a scored output out, whatever fails on the way.

A run in its order (`run`): what is checked before anything starts (`preflight`), who leads (`driver`), Ray Data's graph
(`pipeline`), a unit read and encoded (`prepare`, `unit`), scored by an engine (`actor`), retried or halved (`coordinator`,
`bisection`), written (`write`) and committed (`committer`). Also the dry run (`estimate`, `budget`). Knows nothing of
languages, nor of what is mined from scores.
"""
