from . import batch as batch
from . import errors as errors
from .call import Cones2Output as Cones2Output
from .conditioning import LayoutSettings as LayoutSettings
from .conditioning import conditioned as conditioned
from .drawing import (
    Row as Row,
)
from .drawing import (
    contact_sheet as contact_sheet,
)
from .drawing import (
    draw_attention as draw_attention,
)
from .drawing import (
    draw_layout as draw_layout,
)
from .errors import Cancelled as Cancelled
from .errors import Cones2Error as Cones2Error
from .errors import Cones2Warning as Cones2Warning
from .examples import EXAMPLES as EXAMPLES
from .hub import pull as pull
from .hub import push as push
from .layout import Box as Box
from .layout import Layout as Layout
from .layout import Mask as Mask
from .layout import Polygon as Polygon
from .layout import Region as Region
from .layout import Rest as Rest
from .learning.learner import LearnStep as LearnStep
from .learning.recipe import RECIPES as RECIPES
from .learning.recipe import Recipe as Recipe
from .library import Library as Library
from .photos import Photo as Photo
from .photos import load_photos as load_photos
from .photos import photo_report as photo_report
from .pipeline import Cones2Pipeline as Cones2Pipeline
from .png import read_record as read_record
from .png import write_picture as write_picture
from .redraw import PictureRecord as PictureRecord
from .residual import Residual as Residual
from .schedulers import make_scheduler as make_scheduler
from .subjects import Subject as Subject

__version__: str
