"""Documents in, packed rows out.

    config -> sources -> documents, tokenizers -> prepare -> corpus -> pipeline

`prepare.prepare` tokenizes a source once into a cache on disk, `corpus.Corpus` reads that cache,
`pipeline.train_batches` feeds training and `corpus.evaluation_documents` feeds evaluation.
"""
