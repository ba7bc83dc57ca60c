"""An eighth task, as another distribution would bring it: it darkens pictures."""

from polydit.core.task import Command, Option, System, TaskSpec

TASK = TaskSpec(
    name="dummy",
    package="dummy",
    summary="Darken pictures.",
    systems=(System("Dusk", "A system that nobody published", None, "small.yaml", "only for the tests"),),
    module="polydit_dummy.model:Dusk",
    datamodule="polydit_dummy.model:Nights",
    pipeline="polydit_dummy.pipeline:DuskPipeline",
    predict="polydit_dummy.pipeline:predict_one",
    demo=None,
    default_weights="demos/weights/dummy",
    default_config="small.yaml",
    predict_options=(
        Option("--amount", "float", 0.5, "how dark", minimum=0),
        Option("--scale", "int", 4, "taken from another task", choices=(2, 3, 4)),
        Option("--fail-at", "str", "", "stem of the input at which to fail, as the test asks"),
    ),
    input_kinds=("image",),
    outputs=("{stem}.png",),
    commands=(
        Command(
            "greet", "Say hello.", "polydit_dummy.pipeline:greet", (Option("name", "str", None, "to whom"),)
        ),
    ),
)
