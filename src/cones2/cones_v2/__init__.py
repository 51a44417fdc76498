"""What the authors' published code does and writes (ali-vilab/Cones-V2 at 447c194), told anew: none of it is here."""
