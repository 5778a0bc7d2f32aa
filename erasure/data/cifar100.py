"""cifar100: 60,000 photographs in a hundred classes, 32 x 32 colour (Krizhevsky, 2009).

Read from `--data-dir`, which may be (or hold) any of these forms:
- `cifar100-train.tar.gz` and `cifar100-test.tar.gz` (or .tar, .zip) with members `<split>/<class>/NNNN.<image>`;
- the official *binary* version, `cifar-100-binary.tar.gz`, or its unpacked folder `cifar-100-binary`;
- a folder `<split>/<class>/NNNN.<image>`.
Classes are the fine ones ("aquarium_fish"); the twenty coarse labels are left out. The counts are checked (500 and 100
a class). On the hub it is `uoft-cs/cifar100`.
"""

from __future__ import annotations

from erasure.data.cifar import PIXELS, Cifar

FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
NAMES = tuple(FINE.split())
RECORD = 2 + PIXELS  # a coarse label, a fine one, the image


class Cifar100(Cifar):
    """CIFAR-100 from any of its forms on disk, with its fine labels."""

    name = "cifar100"
    title = "CIFAR-100"
    names = NAMES
    binary = {"train": ("train.bin",), "test": ("test.bin",)}  # noqa: RUF012
    binary_folder = "cifar-100-binary"
    pickled = ("cifar-100-python",)
    label_bytes = 2
