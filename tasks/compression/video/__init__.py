"""Video compression: the small system, and GNVC-VD.

The small system codes the first frame of a group by the picture codec, and every other one as what motion-compensated
prediction (`motion`) leaves, through the same transform and a context model that also sees the prediction
(`inter_codec`). All that a decoder predicts from is computed with integers (`synthesis`), so encoder and decoder never
drift apart, on any machine. `groups` codes a group, `small_system` files.
"""

from __future__ import annotations
