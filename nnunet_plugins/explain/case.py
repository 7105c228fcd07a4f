"""All maps of one case: written as NIfTI with the geometry of the image, drawn, and cut for the page."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nnunetv2.utilities.helpers import empty_cache
from numpy.typing import NDArray

from nnunet_plugins import memory
from nnunet_plugins.explain.activations import find_sites, take_activations
from nnunet_plugins.explain.attention import find_shares
from nnunet_plugins.explain.gradcam import GradCam
from nnunet_plugins.explain.model import Head, Model, Wanted
from nnunet_plugins.explain.panels import Layer, Scene, centre_of, crop_of, draw_panel, range_of
from nnunet_plugins.explain.slices import VIEWERS, Stack, Viewer, cut
from nnunet_plugins.explain.windows import Windows
from nnunet_plugins.files import short_name
from nnunet_plugins.images.grid import compare_grids
from nnunet_plugins.images.pictures import gray
from nnunet_plugins.images.reading import Header, read_header
from nnunet_plugins.images.writing import whole_image, write_array
from nnunet_plugins.models.cases import Case
from nnunet_plugins.models.images import ImageError, read_image
from nnunet_plugins.networks.layers.attention import attending, record_attention
from nnunet_plugins.prediction.export import find_labels, maps_in_image
from nnunet_plugins.prediction.volumes import preprocess
from nnunet_plugins.report.words import count

Log = Callable[[str], None]

_FILES = {"attention": "attention_*", "gradcam": "gradcam_*", "activations": "activation_*"}

_OF_CASE = re.compile(r"panels|(segmentation|(attention|gradcam|activation)_.+)\.nii\.gz|.+\.partial\..+|\..*")


@dataclass
class Explained:
    """What comes of a case.

    Attributes:
        name: of the case.
        shares: rows of `attention.COLUMNS`.
        viewer: for the page.
        panels: headings and files of pictures.
        notes: what is worth a word.
    """

    name: str
    shares: list[dict[str, Any]] = field(default_factory=list)
    viewer: Viewer | None = None
    panels: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def clear(folder: Path, kinds: Iterable[str] = tuple(_FILES), *, nifti: bool = True) -> None:
    """Remove maps of a case, and what is left empty by it."""
    for pattern in (_FILES[kind] for kind in kinds):
        for file in (*folder.glob(f"panels/{pattern}.png"), *(folder.glob(f"{pattern}.nii.gz") if nifti else ())):
            file.unlink()


def is_of_case(folder: Path) -> bool:
    """Tell whether a folder holds nothing but what is written of a case."""
    return all(_OF_CASE.fullmatch(path.name) for path in folder.iterdir())


def begin_case(
    model: Model, wanted: Wanted, outputs: Path, found: list[Explained], log: Log, case: Case
) -> Callable[[], str]:
    """Read a case; returns what makes its maps, adds what comes of it to a list, and returns what there is to say."""
    reader = model.predictor.plans_manager.image_reader_writer_class()
    ending = str(model.source.dataset_json["file_ending"])
    image, properties = read_image(case, reader, ending, model.source.channels, log)
    header = read_header(case.images[0])
    if header is None:
        raise ImageError(f"SimpleITK does not know where the voxels of {case.images[0].name} lie")
    return partial(_explain, model, wanted, outputs / case.name, found, case.name, header, image, properties)


def _explain(
    model: Model,
    wanted: Wanted,
    folder: Path,
    found: list[Explained],
    name: str,
    header: Header,
    image: NDArray[Any],
    properties: dict[str, Any],
) -> str:
    data, left = preprocess(model.predictor, image, None, properties)
    windows, maps = look_at(model, data, attention="attention" in wanted.maps)
    logits = maps.pop("")
    folder.mkdir(parents=True, exist_ok=True)
    # Of an earlier run, of which other layers or classes may have been asked.
    clear(folder, [kind for kind in wanted.maps if kind in _FILES], nifti=wanted.nifti)
    labels = find_labels(model.predictor, logits, left)
    writer = _Writer(model, wanted, folder, header, left, image, labels, name, viewed=len(found) < VIEWERS)
    writer.write_segmentation()
    if "attention" in wanted.maps:
        writer.attention(maps)
    if "gradcam" in wanted.maps:
        writer.gradcam(GradCam(model, windows, logits))
    if "activations" in wanted.maps:
        writer.activations(windows)
    found.append(writer.finish())
    size = "x".join(map(str, data.shape[1:]))
    made = count(writer.written, "map") if wanted.nifti else count(len(writer.result.panels), "picture")
    return "; ".join([f"{size} voxels {windows.describe()}, {made}", *writer.result.notes])


def look_at(model: Model, data: torch.Tensor, *, attention: bool) -> tuple[Windows, dict[str, torch.Tensor]]:
    """Let an image through the network; returns its windows, its logits under "", and attention by layer."""

    def look(x: torch.Tensor) -> dict[str, torch.Tensor]:
        with record_attention(model.network) as maps:
            logits = model.network(x)
        # "" would be a network that is one autofocus layer.
        return {**({name: one for name, one in maps.items() if name} if attention else {}), "": logits}

    windows = Windows(model.predictor, data)
    try:
        return windows, windows.gather(look)
    except Exception as error:  # whatever a library raises where memory runs out
        if not (windows.whole and memory.is_out_of_memory(error)):
            raise
    # Not in the handler: the error holds what the pass had allocated.
    empty_cache(model.device)
    windows = Windows(model.predictor, data, tiles="memory ran out in one pass")
    return windows, windows.gather(look)


class _Writer:
    """Writes the maps of a case.

    Args:
        model: the network.
        wanted: what to show.
        folder: the case's.
        header: of the image.
        properties: that preprocessing left.
        image: `(channels, z, y, x)`, as the reader gives it.
        labels: the segmentation, likewise.
        name: of the case.
        viewed: whether its slices go on the page.
    """

    _NOT_FINITE = "some of the network's numbers are not finite: has its training diverged?"

    def __init__(
        self,
        model: Model,
        wanted: Wanted,
        folder: Path,
        header: Header,
        properties: dict[str, Any],
        image: NDArray[Any],
        labels: NDArray[Any],
        name: str,
        *,
        viewed: bool,
    ) -> None:
        self.model, self.wanted, self.folder, self._viewed = model, wanted, folder, viewed
        self.properties, self.written = properties, 0
        shape = header.grid.shape
        affines = properties.get("nibabel_stuff", {})
        self._turn = None
        if "reoriented_affine" in affines:  # the reader has turned the image's axes
            self._turn = ornt_transform(
                io_orientation(affines["reoriented_affine"]), io_orientation(affines["original_affine"])
            )
        # As nnU-Net's reader has it: some formats do not know their spacing, and a file beside them does.
        spacing = tuple(properties["spacing"]) if self._turn is None else header.grid.spacing
        self.header = header
        self.labels = self._as_stored(labels[None])[0]
        if self.labels.shape != tuple(shape):
            raise ImageError(f"the image is read as {self.labels.shape} voxels, and stored as {tuple(shape)}")
        self.scene = Scene(gray(self._as_stored(image[:1])[0]), spacing, self.labels)
        inside = np.zeros(properties["shape_before_cropping"], bool)
        inside[tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])] = True
        inside = self._as_stored(inside.transpose(model.predictor.plans_manager.transpose_backward)[None])[0]
        where = [np.flatnonzero(inside.any(axis=tuple(n for n in range(3) if n != axis))) for axis in range(3)]
        self._box = tuple(slice(int(one[0]), int(one[-1]) + 1) for one in where)
        self.result = Explained(name)
        self._stacks: list[Stack] = []
        self._names: dict[str, str] = {}  # by the file that has it

    def _as_stored(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Return arrays `(n, z, y, x)` with their axes as in the file."""
        if self._turn is None:
            return maps
        turned = [apply_orientation(one.transpose(2, 1, 0), self._turn).transpose(2, 1, 0) for one in maps]
        return np.ascontiguousarray(np.stack(turned))

    def _mask(self, head: Head) -> NDArray[np.bool_]:
        return np.isin(self.labels, head.labels)

    def _heads_there(self) -> Iterator[tuple[Head, NDArray[np.bool_]]]:
        for head in self.wanted.heads:
            if (mask := self._mask(head)).any():
                yield head, mask

    def _largest(self) -> tuple[str, NDArray[np.bool_]]:
        """Return the class that pictures are centred at: of those wanted the one with most voxels."""
        there = [(head.name, mask) for head, mask in self._heads_there()]
        if not there:
            return "", np.zeros(self.labels.shape, bool)
        return max(there, key=lambda one: int(one[1].sum()))

    def write_segmentation(self) -> None:
        """Write the segmentation of the pass that the maps are of."""
        kind = np.uint8 if self.labels.max(initial=0) < 256 else np.uint16
        self._write("segmentation", self.labels.astype(kind))

    def _file_name(self, name: str) -> str:
        """Return a name that every file system takes, another one for each name, also where case does not count."""
        first = found = short_name(re.sub(r"[^\w.\-]+", "-", name))
        number = 1
        while self._names.setdefault(found.casefold(), name) != name:
            number += 1
            found = f"{first}-{number}"
        return found

    def _write(self, name: str, values: NDArray[Any]) -> None:
        if not self.wanted.nifti:
            return
        file = self.folder / f"{self._file_name(name)}.nii.gz"
        with whole_image(file) as part:
            write_array(values, part, self.header)
            written = read_header(part)
            if written is None or (found := compare_grids(self.header.grid, written.grid)):
                detail = found[0].detail if written else "it cannot be read"
                raise ImageError(f"NIfTI cannot hold the geometry of the image: {detail}")
        self.written += 1

    def _in_image(self, maps: torch.Tensor) -> NDArray[np.float32]:
        if not maps.isfinite().all() and self._NOT_FINITE not in self.result.notes:
            self.result.notes.append(self._NOT_FINITE)
        return self._as_stored(maps_in_image(self.model.predictor, maps, self.properties))

    def _panel(self, name: str, heading: str, layers: Sequence[Layer], mask: NDArray[np.bool_], crop: bool) -> None:
        file = self.folder / "panels" / f"{self._file_name(name)}.png"
        draw_panel(file, heading, self.scene, layers, centre_of(mask), crop_of(mask) if crop else None)
        self.result.panels.append((heading, file))

    def _show(self, title: str, values: NDArray[Any], low: float, high: float, names: Sequence[str] = ()) -> None:
        if self._viewed:
            self._stacks.append(cut(title, values, low, high, names))

    def attention(self, maps: dict[str, torch.Tensor]) -> None:
        """Write attention by layer and rate, and the rate that has most; count what is in the classes."""
        about, mask = self._largest()
        attends = attending(self.model.network)
        for layer in list(maps):
            rates = attends[layer].map_names
            found = self._in_image(maps.pop(layer))
            layers = []
            for rate, values in zip(rates, found, strict=True):
                gate = len(rates) == 1
                self._write(f"attention_{layer}" + ("" if gate else f"_rate{rate}"), values)
                title = "gate" if gate else f"rate {rate}"
                layers.append(Layer(title, values))
                self._show(f"attention {layer}, {title}", values, *range_of(values[self._box]))
            if len(rates) > 1:
                # Numbers from 1 on; 0 is what nnU-Net crops away.
                first = np.zeros(self.labels.shape, np.uint8)
                inside = (slice(None), *self._box)
                first[self._box] = found[inside].argmax(axis=0) + 1
                self._write(f"attention_{layer}_argmax", first)
                names = ("cropped", *rates)
                layers.append(Layer("largest", first, names))
                self._show(f"attention {layer}, largest rate", first, 0, len(rates), names)
            self.result.shares += find_shares(
                self.result.name, layer, rates, found, self.labels, self.model.heads, self._box
            )
            centred = f", centre of {about}" if about else ""
            self._panel(f"attention_{layer}", f"Attention of {layer}{centred}", layers, mask, crop=False)

    def gradcam(self, maker: GradCam) -> None:
        """Write Grad-CAM by class and layer; an empty map for a class that is not predicted."""
        for head in self.wanted.heads:
            for layer in self.wanted.layers:
                name = f"gradcam_{layer}_{head.name}"
                if not maker.mask(head).any():
                    self._write(name, np.zeros(self.labels.shape, np.float32))
                    if layer == self.wanted.layers[0]:
                        self.result.notes.append(f"{head.name} is not predicted: its Grad-CAM is empty")
                    continue
                values = self._in_image(maker.map(head, layer)[None])[0]
                self._write(name, values)
                if not values.any():
                    self.result.notes.append(f"nothing in {layer} speaks for {head.name}: its Grad-CAM is empty")
                title = f"Grad-CAM of {head.name} at {layer}"
                self._show(title, values, 0, 1)
                self._panel(name, title, [Layer(head.name, values)], self._mask(head), crop=False)
        if not maker.whole:
            self.result.notes.append("Grad-CAM in one window around each class")

    def activations(self, windows: Windows) -> None:
        """Write the activations of chosen layers."""
        network, wanted = self.model.network, self.wanted
        sites = find_sites(network, wanted.named, wanted.layers[0])
        found = take_activations(network, windows, sites, wanted.channels)
        about, mask = self._largest()
        for site in sites:
            numbers, maps = found.pop(site.name)
            values = self._in_image(maps)
            layers = []
            for number, one in zip(numbers, values, strict=True):
                self._write(f"activation_{site.name}_{number}", one)
                layers.append(Layer(f"channel {number}", one))
                self._show(f"{site.title}, channel {number}", one, *range_of(one))
            heading = f"Activations of {site.title}" + (f", around {about}" if about else "")
            self._panel(f"activation_{site.name}", heading, layers, mask, crop=True)

    def finish(self) -> Explained:
        """Return what comes of the case."""
        if self._viewed:
            below = cut("image", self.scene.image, 0, 1)
            self.result.viewer = Viewer(below, self._stacks, self.scene.spacing)
        return self.result
