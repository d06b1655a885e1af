"Imported by the process that is forked: digests of code, which each training would take anew."

from ssv2_report.data.code import code_digests

code_digests("train:fit", "study.runs:datasets", "demo.world:_tasks", "demo.world:_write_one")
