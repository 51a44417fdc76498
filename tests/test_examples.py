"""The example subjects are what their photos teach."""

from torch.nn.functional import cosine_similarity

from cones2.backbones import open_backbone
from cones2.examples import EXAMPLES
from cones2.learning.loop import learn
from cones2.learning.recipe import find_recipe
from cones2.steps import finish


def test_a_subject_learned_again_is_itself() -> None:
    """Bits differ from machine to machine; who it is does not: a residual is a direction and a length."""
    rex, backbone = EXAMPLES["rex"], open_backbone("mini", device="cpu")
    steps = learn(backbone, rex.photos, rex.class_word, recipe=find_recipe(backbone.learn_preset))
    again, shipped = finish(steps).residual, rex.residual
    assert cosine_similarity(again.vector, shipped.vector).item() > 0.98
    assert abs(again.vector.norm() / shipped.vector.norm() - 1) < 0.05
    assert cosine_similarity(again.vector, EXAMPLES["fido"].residual.vector).item() < 0.9
    assert (again.photos, again.recipe) == (shipped.photos, shipped.recipe)
