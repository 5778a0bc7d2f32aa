import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from erasure.core.errors import DataError, ModelError, OptionError
from erasure.data.images import to_float
from erasure.evaluation.classifiers import DISTRACTORS, open_labeler
from erasure.evaluation.features.clip import clip_image_features, clip_scores, clip_text_features, load_clip
from erasure.evaluation.features.preprocessing import ImagePreprocessor
from erasure.models.classifier import Classifier
from tests.support.tiny_pipelines import text_config, tokenizer

LABELS = ("tench, Tinca tinca", "church, church building", "crane", "crane", "cardigan", "Cardigan, Welsh corgi")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
READINGS = {
    "resnet": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 28, "crop_pct": 0.875, "resample": 3},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2},
    "swin": {"image_processor_type": "ViTImageProcessorFast", "size": 32, "resample": 3},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "resample": 3},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32, "do_center_crop": True},
}


def noise(count=3, height=45, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def by_hand(kind, image):
    """What the network called `kind` is shown, with Pillow and numpy alone, from the words of its processor."""
    short, side = min(image.shape[:2]), 384 if kind == "convnext" else 32  # of resnet too: 28 / 0.875
    whole = kind in ("vit", "swin", "convnext")
    size = (side, side) if whole else tuple(side * edge // short for edge in image.shape[1::-1])
    filters = Image.Resampling.BILINEAR if kind == "vit" else Image.Resampling.BICUBIC
    pixels, crop = np.asarray(Image.fromarray(image).resize(size, filters)), 28 if kind == "resnet" else side
    top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
    return ((pixels[top : top + crop, left : left + crop] / 255 - MEAN) / STD).transpose(2, 0, 1)


def reading(folder, kind, **different):
    folder.mkdir(exist_ok=True)
    config = {**READINGS[kind], "image_mean": MEAN, "image_std": STD, **different}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return ImagePreprocessor.of(folder)


def refused(error, message, given, *wanted):
    with pytest.raises(error, match=message) as caught:
        open_labeler(str(given), wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize(("height", "width"), [(45, 70), (90, 61), (20, 20)])
def test_images_are_read_as_pillow_reads_them(tmp_path, kind, height, width):
    seen = reading(tmp_path, kind)(noise(1, height, width))
    expected = by_hand(kind, noise(1, height, width)[0])
    assert seen.dtype == torch.float32 and seen.shape == (1, *expected.shape)
    levels = np.abs(seen[0].numpy() - expected) * np.array(STD)[:, None, None] * 255
    assert levels.max() < 1.001 and levels.mean() < 0.02


def test_readings_that_cannot_be_followed(tmp_path):
    with pytest.raises(ModelError, match=r"preprocessor_config\.json does not exist"):
        ImagePreprocessor.of(tmp_path)
    for different, message in (
        ({"image_processor_type": "PoolFormerImageProcessor"}, "PoolFormerImageProcessor is none of"),
        ({"resample": 1}, "resample 1 is none of 0, 2, 3"),
        ({"size": {"longest_edge": 32}}, "'height' is missing"),
    ):
        with pytest.raises(ModelError, match=message):
            reading(tmp_path, "vit", **different)
    for images in (noise().astype(np.float32), noise()[0], noise()[:0], np.zeros((1, 8, 8, 4), np.uint8)):
        with pytest.raises(DataError, match="expected uint8"):
            reading(tmp_path, "vit")(images)
    with pytest.raises(DataError, match="takes 32 x 32 pixels, these images have 70 x 20"):
        reading(tmp_path, "clip", do_resize=False)(noise(1, 20))
    plain = reading(tmp_path, "vit", do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(plain(noise()[..., :1]), torch.tensor(noise()[..., [0, 0, 0]]).permute(0, 3, 1, 2).float())


ARCHITECTURES = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def seeded(kind, config):
    """A network whose linear layers are wide enough for noise to differ in its answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(config).eval()
        for part in network.modules():
            if isinstance(part, torch.nn.Linear):
                torch.nn.init.normal_(part.weight, std=0.5)
    return network


def saved(folder, kind, labels=LABELS):
    config = transformers.AutoConfig.for_model(kind, id2label=dict(enumerate(labels)), **ARCHITECTURES[kind])
    network = seeded(transformers.AutoModelForImageClassification.from_config, config)
    network.save_pretrained(folder)
    reading(folder, kind)
    return network


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_stock_classifier_answers_as_its_own_class_does(tmp_path, kind):
    labels = tuple(f"thing {i}" for i in range(16))  # as many as some inner layers are wide
    network = saved(tmp_path, kind, labels)
    labeler, images = open_labeler(str(tmp_path), [("object", "thing 3")]), noise(40)
    with torch.no_grad():
        pixels = ImagePreprocessor.of(tmp_path)(images)
        logits, base = network(pixels).logits, getattr(network, kind)(pixels)
    features = base.last_hidden_state[:, 0] if kind == "vit" else base.pooler_output.flatten(1)
    labeled = labeler.describe(images)
    assert labeler.logits_and_features(images)[0] == pytest.approx(logits, abs=1e-4)
    assert labeled.features == pytest.approx(features.double().numpy(), abs=1e-4)
    assert labeled.values["object"].tolist() == [[labels[i]] for i in logits.argmax(1)]
    assert labeled.features.dtype == np.float64 and labeler.domains == {"object": labels}


def test_labels_are_called_by_the_name_that_was_wanted(tmp_path):
    network = saved(tmp_path, "resnet")

    def domains(*values):
        return open_labeler(str(tmp_path), [("object", value) for value in values]).domains["object"]

    assert domains() == ("tench", "church", "crane", "cardigan", "Cardigan")
    assert domains("Church Building", "tinca tinca")[:2] == ("tinca tinca", "Church Building")
    assert domains("church, church building")[1] == "church, church building"
    # The label that is the very word wins, and the other may not be taken for it.
    assert domains("Cardigan")[3:] == ("Cardigan", "Cardigan, Welsh corgi")
    assert domains("welsh corgi")[3:] == ("cardigan", "welsh corgi")
    before = open_labeler(str(tmp_path), [])
    network.classifier[1].bias.data[1] = 1e4
    network.save_pretrained(tmp_path)
    labeler = open_labeler(str(tmp_path), [("thing", "CHURCH BUILDING")])
    assert labeler.describe(noise()).values["thing"].tolist() == [["CHURCH BUILDING"]] * 3
    reading(tmp_path, "resnet", crop_pct=0.8)
    cropped = open_labeler(str(tmp_path), [("thing", "church")])
    assert len({before.hash, labeler.hash, cropped.hash}) == 3 and cropped.hash == open_labeler(str(tmp_path), []).hash


def test_values_and_domains_a_labeler_does_not_know(tmp_path):
    saved(tmp_path, "resnet")
    church, building = ("object", "church"), ("object", "church building")
    refused(OptionError, r"no label 'chruch' \(did you mean 'church'\?\)", tmp_path, ("object", "chruch"))
    refused(OptionError, r"classifier .* has no label 'zebra' \(known: Cardigan, ", tmp_path, ("object", "zebra"))
    refused(OptionError, "labels one domain, not object and style", tmp_path, church, ("style", "ink"))
    refused(OptionError, "one label for 'church' and 'church building'", tmp_path, church, building)
    saved(tmp_path, "resnet", tuple(f"label {i}, l{i}" for i in range(40)))
    refused(OptionError, r"'zebra' \(of its 40, the nearest are \w[^,]*, [^,]*, [^,]*\)$", tmp_path, ("thing", "zebra"))


def test_folders_that_are_no_labeler(tmp_path, clip_folder, ddpm_folder):
    refused(ModelError, "nowhere does not exist", tmp_path / "nowhere")
    refused(ModelError, "nobody/no-such is no folder here and cannot be read from the hub", "nobody/no-such")
    refused(ModelError, r"no config\.json", tmp_path)
    network, folder = saved(tmp_path / "resnet", "resnet"), tmp_path / "resnet"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(ModelError, r"pytorch_model\.bin is a pickle", folder)
    some = {name: tensor for name, tensor in network.state_dict().items() if name != "classifier.1.weight"}
    network.save_pretrained(folder, state_dict=some)
    refused(ModelError, r"1 tensors differ, first 'classifier\.1\.weight'", folder)
    network.classifier[1].bias.data[0] = torch.nan
    network.save_pretrained(folder)
    refused(ModelError, "NaN", folder)
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    refused(ModelError, "cannot be loaded", folder)
    refused(ModelError, r"not a CLIP model: its config\.json says 'resnet'", f"clip:{folder}")
    mute = shutil.copytree(clip_folder, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer.json"))
    refused(ModelError, r"no tokenizer: expected tokenizer\.json or vocab\.json", f"clip:{mute}")
    (mute / "tokenizer.json").write_text("{}")
    refused(ModelError, "tokenizer in .* is damaged", f"clip:{mute}")
    refused(ModelError, "is a ddpm model: expected a classifier", ddpm_folder, ("digit", "three"))


ASPECTS = {
    "digit": {"names": ["three", "seven"], "of_class": [0, 1, 0, 1]},
    "second": {"names": ["seven", "none", "three"], "of_class": [1, 1, 0, 2], "domain": "digit"},
    "style": {"names": ["ink", "chalk"], "of_class": [0, 0, 0, 0]},
}


def test_a_classifier_of_aspects_tells_each_and_orders_those_of_one_domain(tmp_path):
    info = {"channels": 3, "image_size": 16, "class_names": ["3", "7", "37", "73"], "aspects": ASPECTS}
    model, images = Classifier.new("resnet-digits", info, seed=0), noise(60, 20, 20)
    model.network.classifier[1].weight.data *= 20
    model.save(tmp_path / "labeler")
    labeler = open_labeler(str(tmp_path / "labeler"), [("digit", "Seven"), ("digit", "three"), ("style", "chalk")])
    assert labeler.domains == {"digit": ("three", "Seven"), "style": ("ink", "chalk")} and labeler.hash == model.hash
    logits, features = model.describe(to_float(images))
    labeled = labeler.describe(images)
    assert labeled.features == pytest.approx(features.double().numpy(), abs=1e-4)
    first, second, style = (block.argmax(1).tolist() for block in logits.split([2, 3, 2], dim=1))
    digits = [[("three", "Seven")[a], ("Seven", "", "three")[b]] for a, b in zip(first, second, strict=True)]
    assert labeled.values["digit"].tolist() == digits
    assert labeled.values["style"].tolist() == [[("ink", "chalk")[i]] for i in style]
    labeler.model.network.classifier[1].bias.data[3] = 1e6
    assert labeler.describe(images).values["digit"][:, 1].tolist() == [""] * 60
    with pytest.raises(DataError, match="no images"):
        labeler.describe(images[:0])
    refused(OptionError, "has no label 'none'", tmp_path / "labeler", ("digit", "none"))
    refused(OptionError, r"does not label 'second' \(known: digit, style\)", tmp_path / "labeler", ("second", "three"))
    refused(OptionError, r"does not label 'styles' \(did you mean 'style'\?\)", tmp_path / "labeler", ("styles", "ink"))


def test_a_classifier_of_classes_tells_the_domain_that_is_wanted(classifier, classifier_folder, digits):
    labeler = open_labeler(str(classifier_folder), [("digit", "three")])
    logits, _ = classifier.describe(to_float(digits.images[:50]))
    found = labeler.describe(digits.images[:50]).values["digit"]
    assert found.tolist() == [[digits.class_names[i]] for i in logits.argmax(1)]
    assert labeler.domains == {"digit": digits.class_names}
    assert open_labeler(str(classifier_folder), []).domains == {"object": digits.class_names}


def small_clip(folder):
    """A CLIP of random weights, saved with its tokenizer in `folder`."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = text_config(16, "quick_gelu", 12).to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    seeded(transformers.CLIPModel, config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    reading(folder, "clip")
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip"))


def stock(folder, images, prompts):
    """Unit embeddings of images and prompts by the stock classes."""
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = torch.stack([torch.from_numpy(by_hand("clip", image)).float() for image in images])
    words = tokenizer()(prompts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = network(pixel_values=pixels, **words)
    return found.image_embeds.double(), found.text_embeds.double()


PROMPTS = ["a church", "two cats and a dog", "", "x" * 400, "a church", "noise"]


def test_clip_scores_are_a_hundred_times_the_cosine_and_never_negative(clip_folder):
    model, images = load_clip(str(clip_folder)), noise(6)
    image, text = stock(clip_folder, images, PROMPTS)
    own, said = clip_image_features(model, images).double(), clip_text_features(model, PROMPTS).double()
    assert own / own.norm(dim=1, keepdim=True) == pytest.approx(image, abs=2e-3)
    assert said / said.norm(dim=1, keepdim=True) == pytest.approx(text, abs=1e-5)
    cosine = (image * text).sum(1).numpy()
    assert (cosine < -0.01).any() and (cosine > 0.05).any()
    # Pillow rounds a few pixels to the other side.
    assert clip_scores(model, images, PROMPTS) == pytest.approx(100 * np.maximum(cosine, 0), abs=0.2)
    many = clip_scores(model, noise(40), ["a church"] * 40)
    assert many[35:] == pytest.approx(clip_scores(model, noise(40)[35:], ["a church"] * 5), abs=1e-3)
    with pytest.raises(DataError, match="6 images and 1 prompts"):
        clip_scores(model, images, ["one"])


def test_zero_shot_picks_the_nearest_prompt_in_each_domain(clip_folder):
    wanted = [("object", "church"), ("object", "umbrella stand"), ("style", "Claude Monet")]
    labeler = open_labeler(f"clip:{clip_folder}", wanted)
    objects, styles = labeler.domains.values()
    assert objects[:2] == ("church", "umbrella stand") and set(objects[2:]) < set(DISTRACTORS["object"]) - {"umbrella"}
    assert styles[0] == "Claude Monet" and len(styles) == len(set(styles)) == len(objects) == 10
    labeled = labeler.describe(noise(40))
    for domain, words in (("object", "a photo of a {}"), ("style", "a painting in the style of {}")):
        image, text = stock(clip_folder, noise(40), [words.format(value) for value in labeler.domains[domain]])
        found = [labeler.domains[domain].index(value) for (value,) in labeled.values[domain]]
        assert (image @ text.T)[range(40), found] == pytest.approx((image @ text.T).max(1).values, abs=2e-3)
        assert len(set(found)) > 1
    assert labeled.features.shape == (40, 12) and labeled.features.dtype == np.float64
    assert all(len({value.casefold() for value in own}) == len(own) >= 15 for own in DISTRACTORS.values())


def test_zero_shot_needs_ten_answers(clip_folder):
    clip, ten = f"clip:{clip_folder}", [("digit", str(i)) for i in range(10)]
    labeler = open_labeler(clip, ten)
    assert labeler.domains["digit"] == tuple("0123456789")
    refused(OptionError, "9 values of the domain 'digit', and needs at least 10", clip, *ten[:9])
    refused(OptionError, "one label for 'Church' and 'church'", clip, ("object", "Church"), ("object", "church"))
    refused(OptionError, "needs values to choose from", clip)
    assert labeler.hash != open_labeler(clip, [*ten, ("digit", "10")]).hash


def test_a_clip_folder_in_the_older_layout(tmp_path, clip_folder):
    shutil.copytree(clip_folder, tmp_path / "old", ignore=shutil.ignore_patterns("tokenizer*", "pre*"))
    vocabulary = json.loads((clip_folder / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "old" / "merges.txt").write_text("#version: 0.2\n")
    nested = '{"image_processor": ' + (clip_folder / "preprocessor_config.json").read_text() + "}"
    (tmp_path / "old" / "processor_config.json").write_text(nested)
    old, new = load_clip(str(tmp_path / "old")), load_clip(str(clip_folder))
    assert old.hash == new.hash and old.tokenizer.model_max_length == 77
    assert torch.equal(clip_text_features(old, PROMPTS), clip_text_features(new, PROMPTS))
