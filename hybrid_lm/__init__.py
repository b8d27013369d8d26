"""Train hybrid language models on long documents and see what every layer group buys.

Shape letters, used as suffixes of array names throughout (``x_BLD`` is [B, L, D]):

======  =============================================
B       batch (rows)
L       length (tokens of a row)
S       length of the keys a query may see (cache + row)
D       model width
H       heads
G       key/value heads or groups shared by several heads
K       head dimension of queries and keys
P       head dimension of values
N       state size
E       inner channels
C       positions inside a chunk
V       vocabulary
R       repeats of a group's unit
======  =============================================
"""
