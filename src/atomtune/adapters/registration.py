"""Register atoms with PEFT, so that `get_peft_model` and `PeftModel.from_pretrained` know `AtomConfig`.

PEFT lists its methods in an enum and refuses names that are not in it. The enum is extended in memory, once; nothing on
disk changes, and PEFT's other methods are not affected. `import atomtune` arranges for this to run as soon as PEFT
is imported, so `import atomtune` must come before an atom adapter is opened.
"""

from peft.utils import PeftType, register_peft_method

NAME = "ATOMS"


def register() -> None:
    """Add the method to PEFT. Calling it again does nothing."""
    if NAME in PeftType.__members__:
        return
    from atomtune.adapters.config import AtomConfig
    from atomtune.adapters.model import AtomModel

    _extend_enum()
    register_peft_method(name=NAME.lower(), config_cls=AtomConfig, model_cls=AtomModel, prefix=AtomModel.prefix)


def _extend_enum() -> None:
    """Add a member to the enum, as its metaclass does."""
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member._sort_order_ = len(PeftType.__members__)  # pyright: ignore[reportAttributeAccessIssue]
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
