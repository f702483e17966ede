//! What is shown: tables, SVG plots, the HTML page.
