"""pretrain_net.py, in which some steps, the same in every run, give NaN on one of two processes."""

import math
import random

import torch
from detectron2.utils import comm

import pretrain_net
from detco_d2.engine.step import PretrainStep

SHARE = 0.01  # of the steps

run_step = PretrainStep.run_step


def poison(module: object, inputs: object, result: torch.Tensor) -> torch.Tensor:
    return result + math.nan


def step(self: PretrainStep) -> None:
    chance = random.Random(self.iter)
    is_poisoned, rank = chance.random() < SHARE, chance.randrange(2)
    encoder = chance.choice([self.detco.query_encoder, self.detco.key_encoder])
    handle = encoder.backbone.res3.register_forward_hook(poison)
    if not is_poisoned or rank != comm.get_rank():
        handle.remove()
    run_step(self)
    handle.remove()


PretrainStep.run_step = step  # type: ignore[method-assign]

if __name__ == "__main__":
    pretrain_net.run()
