"""Templates that Ollama would refuse when the model is to be run, long after it was installed."""

import pytest

from modelvault.engines.chat_templates import families
from modelvault.formats.go_template import fault_in

GOOD = [
    "",
    "no action { at } all }}",
    "{{ .Prompt }}",
    "{{- if .System }}{{ .System }}{{ else if .Prompt }}x{{ else }}{{- end -}}",
    '{{ "}}" }}{{ `}}\n"` }}{{ \'"\' }}',
    '{{/* a comment with {{ and " */}}{{- /* another */ -}}',
    "{{ range $i, $_ := .Messages }}{{ if eq $i 1 }}{{ break }}{{ end }}{{ continue }}{{ end }}",
    '{{ define "x" }}{{ . }}{{ end }}{{ template "x" . }}{{ block "y" . }}{{ end }}',
    "{{ with\n.System\n}}{{ end }}",
    "{{ -1 }}{{ endings }}{{ $x := 1 }}",
]
BROKEN = {
    "{{ .X": "is not closed",
    '{{ "}}': "is not closed",
    "{{/* x }}": "is not closed",
    "{{ .X }}{{": "is not closed",
    "{{ if .X }}": "has no {{ end }}",
    "{{ range .X }}{{ if .Y }}{{ end }}": "{{ range }} has no",
    "{{ end }}": "could end",
    "{{ if .X }}{{ end }}{{ end }}": "could end",
    "{{ else }}": "no if, range or with",
    '{{ define "x" }}{{ else }}{{ end }}': "no if, range or with",
    "{{ break }}": "no range",
    "{{}}": "nothing is in it",
    "{{- -}}": "nothing is in it",
    "{{ if }}{{ end }}": "if needs a value",
}


@pytest.mark.parametrize("text", [*GOOD, *(family.template for family in families())])
def test_what_is_right(text: str) -> None:
    """A sound template that is refused is worse than a broken one that is not."""
    assert fault_in(text) is None


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken(text: str) -> None:
    """The user must hear of it while the file is at hand."""
    assert BROKEN[text] in (fault_in(text) or "")
