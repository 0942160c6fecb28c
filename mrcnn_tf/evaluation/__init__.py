"""How good detections are: COCO's measures of boxes, masks and keypoints."""
