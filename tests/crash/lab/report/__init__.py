"""What a run of the laboratory leaves behind: one JSON document, and a page made of such documents.

conditions.py   machine, kernel, file system, Python and commit of a run
document.py     the document, and reading one; schema.json describes each of its fields
page.py         the page, with page.css
plots.py        the page's plots
"""
