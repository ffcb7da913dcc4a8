"""What a job will need and how fast it will go, before it runs: memory and seconds.

Pure but for `probe` and for reading config.json.

    shape      config.json: parameters, KV bytes a token
    devices    figures of GPUs, and of this machine's cores as `probe` measured them
    lengths    how long answers are, the rows and microbatches that they make
    memory     what each rank and each engine holds, what to change where it does not fit
    speed      seconds of generating, training and handing weights over, for one step
    modes      the step time of each mode, and the balance between the roles
    assemble   all of it for one job
    report     the tables and the JSON

Where a job's actors are placed is another matter (`orchestrator.plan`). The formulas and their
sources are in docs/plan.md.
"""
