import torch
from torchvision.models import resnet18

from detco_d2.weights.frozen import frozen_backbone, random_backbone


def test_features_are_those_of_torchvision_on_normalised_images(tmp_path):
    torch.manual_seed(0)
    model = resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        wanted = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    backbone = frozen_backbone(str(tmp_path / "r18.pth"))
    assert backbone.channels == {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
    torch.testing.assert_close(backbone(images)["res5"], wanted, rtol=1e-4, atol=1e-4)


def test_a_random_backbone_follows_its_seed_and_stays_in_evaluation_mode():
    images = torch.randint(0, 256, (1, 3, 32, 32))
    outputs = [random_backbone(18, seed).train()(images)["res5"] for seed in (1, 1, 2)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
