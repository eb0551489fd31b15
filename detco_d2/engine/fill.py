"""Keys of real images for the queues, before the first update of a run."""

import itertools
import logging
from contextlib import closing

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from ..data.mapper import DetCoDatasetMapper
from ..data.stream import mix_seed
from .step import split_batch

logger = logging.getLogger(__name__)

_FILL = 11  # a kind of draw, see mix_seed


class FillHook(HookBase):
    """Passes K images through the key encoder alone, once in a run, and enqueues their keys.

    Random vectors, with which the queues start, are much farther from a query than any real key.
    Each step would push all queries towards the common direction of the keys, to which deep local
    heads without a norm collapse. The images are those of a stream of their own; nothing changes
    but the queues.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def before_train(self) -> None:
        """
        Raises:
            RuntimeError: too many images are unreadable.
            SystemExit: a signal asked for it; the next start fills the queues.
        """
        cfg, step = self.cfg, self.trainer._trainer
        detco = step.detco
        if int(detco.queue.num_enqueued):
            return
        mapper = DetCoDatasetMapper(cfg, views=[f"{view}_key" for view in detco.key_views])
        seed = mix_seed(self.trainer.data_seed, _FILL)
        count = -(-cfg.MODEL.DETCO.QUEUE_LENGTH // cfg.SOLVER.IMS_PER_BATCH)
        detco.begin_step()
        autocast = torch.autocast(step.device.type, torch.bfloat16, cfg.SOLVER.AMP.ENABLED)
        silent = not comm.is_main_process()
        with closing(self.trainer.batches(mapper, seed, 0)) as batches:
            first = itertools.islice(batches, count)
            for batch in tqdm(first, "Queues", count, mininterval=10, disable=silent):
                bad_images, keys = batch.pop("bad_images"), []
                for part in split_batch(batch, step.parts):
                    views = mapper.finish(part, step.device)
                    with autocast:
                        keys.append(detco.encode_keys(views))
                detco.queue.enqueue(torch.cat(keys, dim=1))
                self._agree(bad_images)
        detco.undo_step()  # the running statistics

    def _agree(self, bad_images: list[tuple[str, str]]) -> None:
        """What processes note and do alike after each batch."""
        found = comm.all_gather((bad_images, self.trainer.stop.number))
        self.trainer.bad_images.add([pair for pairs, _ in found for pair in pairs])
        if number := max(number for _, number in found):
            logger.warning(
                f"Stopped by signal {number:d} while the queues were filled, before the first "
                "iteration; the same command line begins anew."
            )
            raise SystemExit(128 + number)
