"""How good detections are: COCO's measures of boxes and masks."""
