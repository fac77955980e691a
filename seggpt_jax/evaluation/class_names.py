"""Class names of PASCAL VOC, COCO and iSAID, in the order of their class indices, which start at 1."""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
  return tuple(" ".join(name.split()) for name in text.split(","))


VOC_CLASSES = _names("""
  aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
  pottedplant, sheep, sofa, train, tvmonitor
""")
COCO_CLASSES = _names("""
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
  parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
  surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
  broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
  mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
  teddy bear, hair drier, toothbrush
""")
ISAID_CLASSES = _names("""
  ship, storage tank, baseball diamond, tennis court, basketball court, ground track field, bridge, large vehicle,
  small vehicle, helicopter, swimming pool, roundabout, soccer ball field, plane, harbor
""")
