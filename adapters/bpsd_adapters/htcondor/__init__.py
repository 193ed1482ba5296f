"""HTCondor, through the command line tools of the site, here or over SSH."""
