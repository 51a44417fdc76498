"""Every error that this package raises on purpose.

```
Cones2Error
├── SettingsError          a setting outside its range, an unknown recipe, scheduler or device
├── PhotoError             a photo or photo folder that can't be used
├── CaptionError           a class word or caption file that can't be used
├── PromptError            a prompt whose placeholders and subjects do not match, or that is too long
├── LayoutError            a box, region or layout file that makes no sense
├── ResidualError          a residual file that is damaged, hostile or of an unknown version
│   └── ResidualMismatchError   a sound residual that belongs to another text encoder
├── LibraryError           a name that the library of subjects does not have, or can't have
├── HubError               a subject that can't be had from the Hub, or brought there
├── BackboneError          a model that can't be opened or used
├── LearningError          learning that can't start, go on or resume
├── PictureError           a picture that holds no record of how it was made
└── OutputError            something that can't be written
```

A message says what is wrong, what was got, what was expected and what to do next.
"""


class Cones2Error(Exception):
    """Base class: catch this to catch everything that this package raises on purpose."""


class SettingsError(Cones2Error):
    """A setting is outside its range or unknown."""


class PhotoError(Cones2Error):
    """A photo, or a folder of photos, can't be used."""


class CaptionError(Cones2Error):
    """A class word, or a file of captions, can't be used."""


class PromptError(Cones2Error):
    """A prompt and its subjects do not match, or the prompt does not fit the model's window."""


class LayoutError(Cones2Error):
    """A box, a region or a layout file makes no sense."""


class ResidualError(Cones2Error):
    """A residual file is damaged, hostile or of an unknown version."""


class ResidualMismatchError(ResidualError):
    """A sound residual belongs to another text encoder."""


class LibraryError(Cones2Error):
    """The library of subjects does not have a name, or can't have it."""


class HubError(Cones2Error):
    """A subject can't be had from the Hub, or brought there."""


class BackboneError(Cones2Error):
    """A model can't be opened, or lacks what the method needs."""


class LearningError(Cones2Error):
    """Learning can't start, go on or resume."""


class PictureError(Cones2Error):
    """A picture can't be read, or holds no record of how it was made."""


class OutputError(Cones2Error):
    """Something can't be written."""


class Cones2Warning(UserWarning):
    """Something the user should know, that does not stop the work."""
