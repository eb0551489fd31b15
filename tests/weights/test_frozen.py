import torch
from torchvision.models import resnet18

from detco_d2.weights.frozen import frozen_backbone, random_backbone

from .test_export import features_of, normalised


def test_features_are_those_of_torchvision_on_normalised_images(tmp_path):
    torch.manual_seed(0)
    model = resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        wanted = features_of(model, normalised(images).float())
    backbone = frozen_backbone(str(tmp_path / "r18.pth"))
    assert backbone.channels == {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
    torch.testing.assert_close(backbone(images)["res5"], wanted["res5"], rtol=1e-4, atol=1e-4)


def test_a_random_backbone_follows_its_seed_and_stays_in_evaluation_mode():
    images = torch.randint(0, 256, (1, 3, 32, 32))
    outputs = [random_backbone(18, seed).train()(images)["res5"] for seed in (1, 1, 2)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
