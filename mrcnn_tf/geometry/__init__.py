"""Ground floor: pure functions on tensors, no Keras layer. Boxes, anchors, matching, NMS, masks, sizes."""
