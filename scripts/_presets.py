"""What the presets are for, told without importing the package, since help should come at once.

A test holds this list and `mrcnn_tf.presets` together.
"""

PRESETS = """presets:
  mask_rcnn_r18_fpn              Mask R-CNN ResNet-18-FPN
  mask_rcnn_r34_fpn              Mask R-CNN ResNet-34-FPN
  mask_rcnn_r50_fpn              Mask R-CNN ResNet-50-FPN (tables 2a and 2e)
  mask_rcnn_r101_fpn             Mask R-CNN ResNet-101-FPN (tables 1, 2a and 3)
  mask_rcnn_r152_fpn             Mask R-CNN ResNet-152-FPN
  mask_rcnn_x50_32x4d_fpn        Mask R-CNN ResNeXt-50-32x4d-FPN
  mask_rcnn_x101_32x8d_fpn       Mask R-CNN ResNeXt-101-32x8d-FPN
  mask_rcnn_x101_64x4d_fpn       Mask R-CNN ResNeXt-101-64x4d-FPN (tables 1, 2a and 3)
  mask_rcnn_r50_c4               Mask R-CNN ResNet-50-C4 (tables 2a, 2b and 2c)
  mask_rcnn_r101_c4              Mask R-CNN ResNet-101-C4 (tables 1 and 2a)
  mask_rcnn_r50_c5               Mask R-CNN ResNet-50-C5 (table 2d)
  mask_rcnn_r50_dc5              Mask R-CNN ResNet-50-dilated C5
  faster_rcnn_r50_fpn            Faster R-CNN with RoIAlign ResNet-50-FPN: boxes alone
  faster_rcnn_r101_fpn           Faster R-CNN with RoIAlign ResNet-101-FPN: boxes alone (table 3)
  faster_rcnn_x101_64x4d_fpn     Faster R-CNN with RoIAlign ResNeXt-101-64x4d-FPN: boxes alone
  mask_rcnn_r50_c4_softmax       Mask R-CNN ResNet-50-C4 with a softmax over the classes (table 2b)
  mask_rcnn_r50_c4_roipool       Mask R-CNN ResNet-50-C4 with RoIPool (table 2c)
  mask_rcnn_r50_c4_roiwarp_max   Mask R-CNN ResNet-50-C4 with RoIWarp, maximum (table 2c)
  mask_rcnn_r50_c4_roiwarp       Mask R-CNN ResNet-50-C4 with RoIWarp, mean (table 2c)
  mask_rcnn_r50_c4_roialign_max  Mask R-CNN ResNet-50-C4 with RoIAlign, maximum (table 2c)
  mask_rcnn_r50_c5_roipool       Mask R-CNN ResNet-50-C5 with RoIPool (table 2d)
  mask_rcnn_r50_fpn_roipool      Mask R-CNN ResNet-50-FPN with RoIPool (section 4.2)
  mask_rcnn_r50_fpn_mlp          Mask R-CNN ResNet-50-FPN with a perceptron of two layers for masks (table 2e)
  mask_rcnn_r50_fpn_mlp3         Mask R-CNN ResNet-50-FPN with a perceptron of three layers for masks (table 2e)
  mask_rcnn_r50_c4_agnostic      Mask R-CNN ResNet-50-C4 with one mask for all classes (section 4.2)
  faster_rcnn_r101_fpn_roipool   Faster R-CNN with RoIPool ResNet-101-FPN: boxes alone (table 3)
  keypoint_rcnn_r50_fpn          ResNet-50-FPN for boxes and keypoints of persons (section 5)
  keypoint_mask_rcnn_r50_fpn     ResNet-50-FPN for boxes, masks and keypoints of persons (section 5)
  person_mask_rcnn_r50_fpn       ResNet-50-FPN for boxes and masks of persons (section 5)
  person_faster_rcnn_r50_fpn     ResNet-50-FPN for boxes of persons (section 5)
  keypoint_rcnn_r50_fpn_roipool  ResNet-50-FPN for boxes and keypoints by RoIPool (table 6) of persons (section 5)
  mask_rcnn_r50_fpn_1x           Mask R-CNN ResNet-50-FPN, 90,000 steps at 800 pixels
  mask_rcnn_r50_fpn_3x           Mask R-CNN ResNet-50-FPN, 270,000 steps at 640 to 800 pixels
  mask_rcnn_r50_fpn_lsj_100ep    Mask R-CNN ResNet-50-FPN from scratch with large-scale jitter, 100 epochs
  mask_rcnn_r50_fpn_lsj_200ep    Mask R-CNN ResNet-50-FPN from scratch with large-scale jitter, 200 epochs
  mask_rcnn_r50_fpn_lsj_400ep    Mask R-CNN ResNet-50-FPN from scratch with large-scale jitter, 400 epochs
  mask_rcnn_r101_fpn_lsj_100ep   Mask R-CNN ResNet-101-FPN from scratch with large-scale jitter, 100 epochs
  mask_rcnn_r101_fpn_lsj_200ep   Mask R-CNN ResNet-101-FPN from scratch with large-scale jitter, 200 epochs
  mask_rcnn_r101_fpn_lsj_400ep   Mask R-CNN ResNet-101-FPN from scratch with large-scale jitter, 400 epochs
  cityscapes                     Mask R-CNN ResNet-50-FPN for Cityscapes from ImageNet weights (table 7)
  cityscapes_from_coco           Mask R-CNN ResNet-50-FPN for Cityscapes from COCO weights (table 7)
  nucleus                        ResNet-50-FPN for small, crowded objects in small images, in 400 steps
  coco_mini                      ResNet-50-FPN at 384 pixels, to learn a handful of COCO images by heart
  shapes                         a small network for the shapes data set: minutes on two cores, from nothing"""
