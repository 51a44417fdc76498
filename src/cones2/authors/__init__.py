"""Files of the authors' code (ali-vilab/Cones-V2 at 447c194): residuals, configs, colour maps. None of its code."""
