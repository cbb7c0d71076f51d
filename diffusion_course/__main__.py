"""`python -m diffusion_course`: the command `diffusion-course`, also where scripts are not on the path."""
import sys

from diffusion_course.cli import main

if __name__ == "__main__": sys.exit(main())
