"""A contract for import-linter that names what is allowed, so that everything else is not."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """`source` and its submodules import the standard library, themselves, and what is `allowed`.

    Checked on direct imports: whatever is imported is either outside (allowed or not) or inside
    and under the same contract. A `source` that does not exist breaks the contract.
    """

    source = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every import of every module below `source`."""
        source = str(self.source)
        if source not in graph.modules:
            return ContractCheck(kept=False, metadata={"missing": source})
        allowed = {source, *sys.stdlib_module_names, *_words(self.allowed)}
        importers = {source, *graph.find_descendants(source)}
        wrong = [
            (importer, imported)
            for importer in sorted(importers)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not any(imported == name or imported.startswith(f"{name}.") for name in allowed)
        ]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong, "graph": graph})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name each import that breaks the contract, with its line."""
        if "missing" in check.metadata:
            output.print_error(f"there is no module {check.metadata['missing']}")
            return
        for importer, imported in check.metadata["wrong"]:
            details = check.metadata["graph"].get_import_details(
                importer=importer, imported=imported
            )
            lines = ", ".join(str(detail["line_number"]) for detail in details)
            output.print_error(f"{importer} imports {imported} (line {lines})")


def _words(value: object) -> list[str]:
    """The declared field is replaced by the values of the configuration when the contract runs."""
    return [str(word) for word in value] if isinstance(value, (list, tuple, set)) else []
