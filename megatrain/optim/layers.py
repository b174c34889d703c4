"""Layer-wise learning rates (ELECTRA, arXiv 2003.10555, section 3.4): lower layers of a trained model learn slower."""

from megatrain.model.architecture import ModelSection, row_of, rows


def lr_scale(section: ModelSection, name: str, decay: float) -> float:
    """What the learning rate of a weight is multiplied by: `decay` to the power of the number of layers above it.

    Nothing is above the last layer, final norm, pooler and head; all layers are above embeddings and their norm, which
    the parameter table has in front of the layers. An embedding that is the head as well counts as an embedding.
    """
    if decay == 1.0:
        return 1.0
    row, layers = row_of(section, name), section.num_hidden_layers
    if row.layers is not None:
        return float(decay ** (layers - 1 - row.layers[0]))
    table = rows(section)
    first = next(place for place, one in enumerate(table) if one.layers is not None)
    is_below = any(one.name == row.name for one in table[:first])
    return float(decay**layers) if is_below else 1.0
