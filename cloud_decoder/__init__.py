"""The cloud decoder: asks the edge for the layers of a face and synthesises its picture."""
