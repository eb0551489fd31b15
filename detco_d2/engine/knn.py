"""Nearest-neighbour accuracy of the query encoder's backbone while it is pretrained."""

import copy
import logging
import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..probes.features import extract
from ..probes.labelled import Labelled, LabelledImages, load_halves
from ..probes.probes import chance, knn
from ..weights.frozen import FrozenBackbone
from ..weights.input_spec import InputSpec
from .stopping import StopRequest

logger = logging.getLogger(__name__)


def load_knn_halves(cfg: CfgNode) -> tuple[Labelled, Labelled]:
    """What TEST.KNN compares with, and what it classifies.

    Raises:
        ValueError, FileNotFoundError: see :func:`load_halves`.
    """
    node = cfg.TEST.KNN
    return load_halves(node.DATASET, max_images=node.MAX_IMAGES, key="TEST.KNN.DATASET")


class KNNHook(HookBase):
    """Puts `knn/{stage}`, top-1 accuracy in percent, into the storage and the log.

    Training goes on as if it had not been: a copy of the backbone is evaluated, and no random
    number is drawn. The processes share the images; each uses the running statistics of the first,
    which are those that a checkpoint has. Loader processes listen to `stop` too.
    """

    def __init__(self, cfg: CfgNode, stop: StopRequest) -> None:
        self.cfg = cfg
        self.stop = stop

    def before_train(self) -> None:
        self.halves = load_knn_halves(self.cfg)

    def before_step(self) -> None:
        if self.cfg.TEST.KNN.PERIOD > 0 and self.trainer.iter == 0:
            self.evaluate("before training")

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self.cfg.TEST.KNN.PERIOD
        if done == self.trainer.max_iter or period > 0 and done % period == 0:
            self.evaluate(f"at iteration {self.trainer.iter}")

    def evaluate(self, when: str) -> None:
        """Evaluate once, said to be `when`; every process has to call it."""
        started = time.perf_counter()
        backbone = copy.deepcopy(self.trainer._trainer.detco.query_encoder.backbone)
        if comm.get_world_size() > 1:
            for buffer in backbone.buffers():
                torch.distributed.broadcast(buffer, 0)
        backbone = FrozenBackbone(backbone, InputSpec(self.cfg).settings, "query encoder")
        backbone.to(self.cfg.MODEL.DEVICE)
        halves = [self._features(backbone, half) for half in self.halves]
        if not comm.is_main_process():
            return
        (features, y), (test_features, test_y) = halves
        if not len(y) or not len(test_y):
            logger.warning("No k-NN: no image of a half of TEST.KNN.DATASET can be read.")
            return
        k = self.cfg.TEST.KNN.NEIGHBOURS
        found = {f"knn/{s}": knn(x, y, test_features[s], test_y, k=k) for s, x in features.items()}
        self.trainer.storage.put_scalars(**found, smoothing_hint=False)
        values = ", ".join(f"{name.removeprefix('knn/')} {v:.1f} %" for name, v in found.items())
        logger.info(
            f"k-NN {when}: {values} (chance {chance(y, test_y)['top-1']:.1f} %; {len(test_y)} "
            f"images among {len(y)}, {time.perf_counter() - started:.0f} s)"
        )

    def _features(
        self, backbone: FrozenBackbone, half: Labelled
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Features by stage and labels of all images, on the main process; elsewhere anything."""
        images = LabelledImages(half, self.cfg.INPUT.DETCO.GLOBAL_SIZE)
        own = range(comm.get_rank(), len(images), comm.get_world_size())
        try:
            features, numbers = extract(
                backbone,
                torch.utils.data.Subset(images, own),
                num_workers=self.cfg.DATALOADER.NUM_WORKERS,
                timeout=self.cfg.SOLVER.COLLECTIVE_TIMEOUT,
                device=backbone.pixel_mean.device,
                start_worker=lambda worker: self.stop.listen_in_worker(),
            )
        except ValueError as error:  # training does not end because a folder has gone
            logger.warning("%s", error)
            features, numbers = {}, torch.zeros(0, dtype=torch.long)
        parts = comm.gather((features, numbers)) or [(features, numbers)]
        stages = dict.fromkeys(stage for found, _ in parts for _, stage in found)
        joined = {s: torch.cat([f["average", s] for f, _ in parts if f]) for s in stages}
        order = torch.cat([positions for _, positions in parts])
        return joined, torch.from_numpy(half.labels)[order]
