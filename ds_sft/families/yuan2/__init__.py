"""Yuan2, the dense Yuan 2.0 models: decoder-only, trained on answers inside one sequence."""
