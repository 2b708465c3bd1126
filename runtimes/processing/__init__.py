"""What a bundle says of the raw inputs and the answers of its model, and how it is done: numpy alone at import.

``docs/processing.md`` lists every kind and step with its keys.
"""

from runtimes.processing.processor import Processor
from runtimes.processing.record import FOLDER, Processing, parse_processing

__all__ = ["Processor", "Processing", "parse_processing", "FOLDER"]
